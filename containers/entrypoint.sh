#!/bin/sh
# Docker's and Podman's entry point; Apptainer's %runscript calls it as well.
. /opt/study/environment.sh
exec "$@"
