"""Run a job as a process on this machine.

\b
  runner host                              train the default recipe
  runner host lr=1e-3 max_steps=100 --name try
  runner host gpt2_124m --queue --detach   when the GPUs are free
  runner host sample prompt="def " temperature=0.5
  runner host run my_gpt.py lr=3e-4        train() of a file
  runner host pipeline configs/nanogpt_shakespeare.yaml
  runner host --dir ../nanoGPT -- python train.py --max_iters=100
"""

from runner.commands._jobs import machine_group

command = machine_group(__doc__, "host")
