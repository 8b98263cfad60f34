"""`python -m skipway`: the command line, where a launcher such as torchrun names a module."""

from skipway.cli import main

if __name__ == "__main__":
    main()
