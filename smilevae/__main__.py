"""python -m smilevae: the command of smilevae."""

from smilevae.cli import main

if __name__ == "__main__":
    main()
