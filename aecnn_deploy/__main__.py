"""``python -m aecnn_deploy``: the same as the ``aecnn-deploy`` command."""

from aecnn_deploy.cli.main import main

if __name__ == "__main__":
    main()
