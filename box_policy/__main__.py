"""``python -m box_policy`` is the ``box-policy`` command."""

from box_policy.cli.main import main

if __name__ == "__main__":
    main()
