"""`python -m supabase_emulator`: the same commands as `supabase-emulator`."""

from supabase_emulator.cli import main

if __name__ == "__main__":
    main()
