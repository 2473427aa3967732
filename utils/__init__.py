"""What two days share: device, data, training loop, logger, metrics, pictures.

Modules import each other only downwards: `days`, `device`, `metrics` and `plots` stand at the bottom, `data` and
`logger` on them, `training` above, the command line (`python -m tools`) on top. Import the module you
need (`from utils import data`); nothing heavy is loaded before that.
"""
