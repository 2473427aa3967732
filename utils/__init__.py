"""What two days or more share. Three rules, tested in `tests/test_house.py`:

1. `utils` imports neither `tools`, `bench` nor a day. `utils/*.py` is for nearly every day, `utils/speech` for the
   sound of Days 7 to 14, `utils/models` for networks that two days share, `utils/sources` for getting the data.
2. A day imports libraries, `utils` and the modules of its own folder, never another day.
3. Nothing imports `tools` or `bench`.

Modules import each other only downwards: `days`, `device` and `metrics` are at the bottom, `sources`, `data`,
`plots` and `logger` above them, then `training` and `tuning`.
"""
