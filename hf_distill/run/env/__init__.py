"""`hf-distill env`: versions, devices, launcher and directories, to paste into a report of a bug."""
