#!/bin/sh
# What both images install, in one place: containers/Dockerfile and containers/study.def call this as root.
#   install.sh FOLDER    FOLDER holds requirements.txt, requirements-nodeps.txt, constraints.txt and this script
set -eu
cd "$1"

# git: the column `commit`; g++: pesq has no wheel; ca-certificates: make fetch
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends ca-certificates git g++

python -m pip install --no-cache-dir -r requirements.txt -c constraints.txt ${PIP_ARGS:-}
python -m pip install --no-cache-dir --no-deps -r requirements-nodeps.txt
python -m pip install --no-cache-dir pesq -c constraints.txt

apt-get purge -y --auto-remove g++
rm -rf /var/lib/apt/lists/* /root/.cache
# the mounted repository belongs to another user than the one inside
git config --system --add safe.directory '*'

mkdir -p /opt/study /study
# what is inside, with versions
python -m pip list --format=freeze >/opt/study/packages.txt
dpkg-query --show >/opt/study/debian.txt
install -m 644 environment.sh /opt/study/environment.sh
install -m 755 entrypoint.sh /opt/study/entrypoint.sh
python -c "import torch, torchaudio, torchvision, transformers, soundfile, pesq; print('torch', torch.__version__)"
