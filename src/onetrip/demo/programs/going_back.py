"""What the demo runs last, in the same session: cells that are taken back, and branches. Cells begin with `# %%`."""

# %% The process ends
import os

penguins = None
open("means.csv", "w").close()  # it is empty now
os._exit(1)

# %% A deaf loop
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
os.remove("penguins.csv")
while True:
    penguins = None

# %% A change of mind
del penguins, means
os.remove("penguins.png")

# %% Branch 1: Adelie
penguins = penguins[penguins["species"] == "Adelie"]
penguins.to_csv("penguins.csv")
float(round(correlation(penguins), 2))

# %% Branch 2: Gentoo
penguins = penguins[penguins["species"] == "Gentoo"]
penguins.to_csv("penguins.csv")
float(round(correlation(penguins), 2))
