"""The scenarios, a file for each family of faults. Importing this puts them all on the list."""

from tests.fleet_faults.scenarios import deploys as deploys
from tests.fleet_faults.scenarios import engines as engines
from tests.fleet_faults.scenarios import limits as limits
from tests.fleet_faults.scenarios import replicas as replicas
from tests.fleet_faults.scenarios import wires as wires
