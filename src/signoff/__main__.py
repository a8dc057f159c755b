"""`python -m signoff` is `signoff`: both start here."""

import gc


def main() -> None:
    """Import the command line and run it."""
    gc.disable()  # imports leave little garbage, and each collection in between walks all that is loaded
    from signoff.cli import main as run_command

    gc.freeze()
    gc.enable()
    run_command()


if __name__ == "__main__":
    main()
