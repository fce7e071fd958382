"""`python -m myhealth_cli`."""

from myhealth_cli.cli import main

if __name__ == "__main__":
    main()
