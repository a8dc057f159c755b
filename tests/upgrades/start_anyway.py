"""Run a module of a release with a schema that is newer than its own: `start_anyway.py MODULE COMMAND…`.

It is for releases that refuse any newer schema at their start. A process of such a release goes on while the schema is
migrated; this shows that the next one would do as well.
"""

import runpy
import sys

from signoff.stores import postgres, sqlite

postgres.check_schema = sqlite.check_schema = lambda conn: None
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
