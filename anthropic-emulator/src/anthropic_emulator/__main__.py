"""`python -m anthropic_emulator`: the same commands as `anthropic-emulator`."""

from anthropic_emulator.cli import main

if __name__ == "__main__":
    main()
