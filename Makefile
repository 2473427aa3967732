# Two commands: `make run` and `make test`. The logic is in `python -m tools`; see `make help`.
# Python: the first of 3.11 (3.11.5 or newer), 3.12 and 3.13 that is here; `make run PYTHON=/path/to/python` takes another.
PYTHON   ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
              "$$p" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 14))' 2>/dev/null && echo "$$p" && break; done)
PROFILE  ?= study
DAY      ?= 1
TASK     ?=
WORKERS  ?= 1
ENGINE   ?= $(shell for e in docker podman buildah apptainer singularity; do command -v "$$e" >/dev/null && echo "$$e" && break; done)
IMAGE    ?= study.sif
DAYS     ?=
BASE     ?=
BUILD    ?=
RUN      ?=
PIP_ARGS ?=
VENV     ?= .venv
PY        = $(VENV)/bin/python

.PHONY: run test check extras lab day practice fetch sweep bench summary doctor new checkin container container-days engine clean help

run: $(VENV)/.installed        ## all days that exist, quick profile, offline, ends with a table
	@$(PY) -m tools run --profile quick
test: $(VENV)/.installed       ## the whole test suite (what CI runs)
	@$(PY) -m pytest -n 2 --dist loadfile
check: $(VENV)/.installed      ## the short loop: lint and the tests without notebooks
	@$(PY) -m ruff check -q . && $(PY) -m pytest -q -n 2 --dist loadfile -m "not notebook and not processes and not slow"
extras: $(VENV)/.installed     ## optional packages: requirements-extras.txt
	@sed 's/ *#.*//; /^$$/d' requirements-extras.txt | while read -r line; do \
	  $(PY) -m pip install -q "$$line" -c constraints.txt $(PIP_ARGS) || echo "left out: $$line"; done
lab: $(VENV)/.installed        ## JupyterLab in this folder
	@$(PY) -m jupyter lab
day: $(VENV)/.installed        ## one day: make day DAY=2 PROFILE=study
	@$(PY) -m tools run --days $(DAY) --profile $(PROFILE)
practice: $(VENV)/.installed   ## a copy of a day's notebook in which you write the core: make practice DAY=3
	@$(PY) -m tools practice $(DAY)
fetch: $(VENV)/.installed      ## the data of one day: make fetch DAY=2
	@$(PY) -m tools fetch --day $(DAY)
sweep: $(VENV)/.installed      ## a day's search, by several workers: make sweep DAY=8 WORKERS=2
	@$(PY) -m tools sweep --day $(DAY) --profile $(PROFILE) --workers $(WORKERS)
bench: $(VENV)/.installed      ## our way against the stock way: make bench TASK=mnist
	@$(PY) -m bench $(TASK)
summary: $(VENV)/.installed    ## figures of the CSVs into README and notes, and the picture
	@$(PY) -m tools summary
doctor: $(VENV)/.installed     ## is everything here? OK or FAIL with the fix
	@$(PY) -m tools doctor
new: $(VENV)/.installed        ## your own project: make new NAME=day3_speech_commands TO=~/my_project
	@$(PY) -m tools new $(NAME) $(TO)
checkin: $(VENV)/.installed    ## what a day still lacks: make checkin DAY=7
	@$(PY) -m tools checkin $(DAY)
container: engine              ## build the image: make container ENGINE=podman (see containers/README.md)
	@echo "The image takes 3.5 GB as one .sif file and 7 GB as layers; the build fills up to 20 GB in $${APPTAINER_TMPDIR:-$${TMPDIR:-/tmp}}:" && df -h "$${APPTAINER_TMPDIR:-$${TMPDIR:-/tmp}}"
	@case "$(ENGINE)" in \
	  apptainer|singularity) $(ENGINE) build $(BUILD) study.sif containers/study.def ;; \
	  buildah) buildah bud $(if $(BASE),--build-arg BASE=$(BASE)) -f containers/Dockerfile -t study:latest $(BUILD) . ;; \
	  *) $(ENGINE) build $(if $(BASE),--build-arg BASE=$(BASE)) -f containers/Dockerfile -t study:latest $(BUILD) . ;; \
	esac
container-days: engine         ## time and memory of days in the image: make container-days DAYS="1 2" ENGINE=apptainer
	@case "$(ENGINE)" in \
	  apptainer|singularity) inside="$(ENGINE) exec --bind $(CURDIR) --pwd $(CURDIR) $(RUN) $(IMAGE)" ;; \
	  podman) inside="podman run --rm --userns=keep-id --user $$(id -u):$$(id -g) -v $(CURDIR):/study $(RUN) study" ;; \
	  *) inside="$(ENGINE) run --rm --user $$(id -u):$$(id -g) -v $(CURDIR):/study $(RUN) study" ;; \
	esac; \
	$$inside python -m tools inside $(if $(DAYS),--days $(DAYS)) --engine "$$($(ENGINE) --version | sed 's/ version//; s/[,(].*//')"
engine:
	@test -n "$(ENGINE)" || { echo "No container engine is installed here: try 'module load apptainer' on a cluster, or install Docker or Podman (containers/README.md)."; exit 2; }
clean:                         ## back to a fresh clone (data/, .venv and your practice notebooks stay)
	@git clean -fdXq --exclude='!/data/' --exclude='!.venv/' --exclude='!*_practice.ipynb'
help:                          ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 21

$(VENV)/.installed: requirements.txt requirements-nodeps.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 (3.11.5 or newer), 3.12 or 3.13 is here. Install one (python.org, your package manager, or pyenv), or name it: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --progress-bar on -r requirements.txt -c constraints.txt $(PIP_ARGS)
	$(PY) -m pip install --no-deps -r requirements-nodeps.txt
	@touch $@
