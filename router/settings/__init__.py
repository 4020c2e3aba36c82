"""Settings: frozen classes made from flags and YAML; all mistakes are reported together, by path.

One declaration per setting (`fields.setting`) gives its flag, its YAML key, its check, its help and
its row in the docs.
"""

from .fields import setting as setting
from .fields import settings_of as settings_of
from .files import with_credentials as with_credentials
from .files import with_launchers as with_launchers
from .flags import split_flags as split_flags
from .helptext import command_details as command_details
from .helptext import command_help as command_help
from .helptext import entry as entry
from .helptext import flag_help as flag_help
from .helptext import markdown_table as markdown_table
from .launcher import LauncherFile as LauncherFile
from .launcher import LauncherSettings as LauncherSettings
from .launcher import Restart as Restart
from .live import Changes as Changes
from .live import Live as Live
from .load import load as load
from .model import AccessLog as AccessLog
from .model import DemoSettings as DemoSettings
from .model import LogFormat as LogFormat
from .model import LogLevel as LogLevel
from .model import QueueOrder as QueueOrder
from .model import RouterSettings as RouterSettings
from .model import RoutingAlgorithm as RoutingAlgorithm
from .model import TensorUpdates as TensorUpdates
from .model import WorkerSettings as WorkerSettings
from .sections import Settings as Settings
from .tls import Certificate as Certificate
from .tls import load_certificate as load_certificate
