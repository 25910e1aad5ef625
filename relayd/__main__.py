"""`python -m relayd` is `relayd`."""

from relayd.cli.app import main

if __name__ == "__main__":
    main()
