"""The scenarios, a file for each family of faults. Importing this puts them all on the list."""

from tests.faults.scenarios import clients as clients
from tests.faults.scenarios import databases as databases
from tests.faults.scenarios import journals as journals
from tests.faults.scenarios import poison as poison
from tests.faults.scenarios import processes as processes
from tests.faults.scenarios import readers as readers
from tests.faults.scenarios import upstreams as upstreams
