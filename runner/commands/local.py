"""Run a job in the container on this machine, with Docker Compose.

\b
  runner local                             train the default recipe
  runner local lr=1e-3 max_steps=100 --name try
  runner local shakespeare_char --gpu 2 --detach
  runner local sample prompt="def " temperature=0.5
  runner local run my_gpt.py lr=3e-4       train() of a file
  runner local pipeline configs/nanogpt_shakespeare.yaml
  runner local --dir ../nanoGPT -- python train.py --max_iters=100
"""

from runner.commands._jobs import machine_group

command = machine_group(__doc__, "local")
