"""The myhealth command."""
