"""A local stand-in for Supabase Auth."""
