# Two commands: `make run` and `make test`. All logic lives in `python -m utils`; see `make help`.
PYTHON   ?= python3.11
PROFILE  ?= study
DAY      ?= 1
TASK     ?= all
WORKERS  ?= 1
ENGINE   ?=
BASE     ?=
PIP_ARGS ?=
VENV      = .venv
PY        = $(VENV)/bin/python

.PHONY: run test lab day fetch sweep bench summary doctor new checkin container clean help

run: $(VENV)/.installed        ## all days that exist, quick profile, offline, ends with a table
	@$(PY) -m utils run --profile quick
test: $(VENV)/.installed       ## the whole test suite (what CI runs)
	@$(PY) -m pytest
lab: $(VENV)/.installed        ## JupyterLab in this folder
	@$(PY) -m jupyter lab
day: $(VENV)/.installed        ## one day: make day DAY=2 PROFILE=study
	@$(PY) -m utils run --days $(DAY) --profile $(PROFILE)
fetch: $(VENV)/.installed      ## the data of one day: make fetch DAY=2
	@$(PY) -m utils fetch --day $(DAY)
sweep: $(VENV)/.installed      ## a day's search, by several workers: make sweep DAY=8 WORKERS=2
	@$(PY) -m utils sweep --day $(DAY) --profile $(PROFILE) --workers $(WORKERS)
bench: $(VENV)/.installed      ## our way against the stock way: make bench TASK=mnist
	@$(PY) -m utils bench $(TASK)
summary: $(VENV)/.installed    ## figures of the CSVs into README and notes, and the picture
	@$(PY) -m utils summary
doctor: $(VENV)/.installed     ## is everything here? OK or FAIL with the mend
	@$(PY) -m utils doctor
new: $(VENV)/.installed        ## your own project: make new NAME=day3_speech_commands TO=~/my_project
	@$(PY) -m utils new $(NAME) $(TO)
checkin: $(VENV)/.installed    ## what a day still lacks: make checkin DAY=7
	@$(PY) -m utils checkin $(DAY)
container:                     ## build the image: make container ENGINE=podman (see containers/README.md)
	@$(PYTHON) -m utils container --engine "$(ENGINE)" --base "$(BASE)"
clean:                         ## back to a fresh clone (data/ and .venv stay)
	@git clean -fdXq --exclude='!/data/' --exclude='!.venv/'
help:                          ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 15

$(VENV)/.installed: requirements.txt requirements-nodeps.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --progress-bar on -r requirements.txt -c constraints.txt $(PIP_ARGS)
	$(PY) -m pip install --no-deps -r requirements-nodeps.txt
	@touch $@
