"""The part on the user's machine: the command line, the plan and the targets.

Never imports torch.
"""
