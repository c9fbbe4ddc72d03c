import sys

from agentfleet.home import HomeError
from agentfleet.roles import ROLES
from runs.sandbox.base import Refused

if sys.argv[1:] and sys.argv[1] in ROLES and len(sys.argv) == 2:
    try:
        ROLES[sys.argv[1]]()
    except (HomeError, Refused) as error:
        sys.exit(f"agentfleet: {error}")
else:
    from agentfleet.cli import main

    main()
