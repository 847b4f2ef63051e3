"""`python -m gateway` is `confgate`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
