"""What the process that workers are forked from does before the first (shell.template). Importing this is doing it, and
only multiprocessing's fork server does so.
"""

import concurrent.futures.process  # noqa: F401 - a worker's first import
import gc
import os
from contextlib import suppress

from zemosaicd.work import entry

gc.disable()  # nothing that is imported is garbage: to look for it takes a tenth of the time
entry.follow(int(os.environ[entry.DAEMON]), "zemosaicd-fork")
os.environ[entry.TEMPLATE] = str(os.getpid())
with suppress(Exception):  # each worker tries again, and says what is wrong
    entry.warm(os.environ[entry.WARM_UP])
gc.freeze()  # what is shared stays shared: no worker's collector writes to it
gc.enable()
