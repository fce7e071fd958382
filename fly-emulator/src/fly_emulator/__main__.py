"""`python -m fly_emulator`: the same commands as `fly-emulator`."""

from fly_emulator.cli import main

if __name__ == "__main__":
    main()
