"""`python -m deploy.cli`: the command line by the interpreter's own path, as the supervisor starts its processes."""

from deploy.cli.main import main

main()
