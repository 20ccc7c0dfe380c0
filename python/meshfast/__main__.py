"""`python -m meshfast`: the same as the `meshfast` command."""

from meshfast.cli import main

if __name__ == "__main__":
    main()
