# The environment of both images, sourced by Docker's entry point and by Apptainer's %environment (POSIX sh).
# Nothing here depends on a writable HOME: caches go to $STUDY_CACHE, by default a folder of yours under /tmp.
# Nor on an account in the image: `docker run --user 1234:1234` works.
export PYTHONNOUSERSITE=1 # packages in ~/.local of the host must not shadow those of the image
export PYTHONUNBUFFERED=1
export JUPYTER_PREFER_ENV_PATH=1

export STUDY_CACHE="${STUDY_CACHE:-${SLURM_TMPDIR:-/tmp}/study-$(id -u)}"
export HF_HOME="${HF_HOME:-$STUDY_CACHE/huggingface}"
export TORCH_HOME="${TORCH_HOME:-$STUDY_CACHE/torch}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$STUDY_CACHE/matplotlib}"
export IPYTHONDIR="${IPYTHONDIR:-$STUDY_CACHE/ipython}"
export JUPYTER_CONFIG_DIR="${JUPYTER_CONFIG_DIR:-$STUDY_CACHE/jupyter/config}"
export JUPYTER_DATA_DIR="${JUPYTER_DATA_DIR:-$STUDY_CACHE/jupyter/data}"
export JUPYTER_RUNTIME_DIR="${JUPYTER_RUNTIME_DIR:-$STUDY_CACHE/jupyter/runtime}"
export USER="${USER:-study}" # torch asks for a name, and stops where there is none
[ -w "${HOME:-/}" ] || export HOME="$STUDY_CACHE"
mkdir -p "$STUDY_CACHE" 2>/dev/null || echo "study: $STUDY_CACHE cannot be written; set STUDY_CACHE=/path" >&2

# Compute nodes have no internet: ask no hub there (make fetch on the login node has brought what is needed).
if [ -n "${SLURM_JOB_ID:-}" ]; then
  export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
fi
