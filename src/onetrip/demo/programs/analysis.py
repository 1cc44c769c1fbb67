"""What the demo runs first: a program such as a model writes when it is asked what the data says. Cells begin with `# %%`."""

# %% Read the data
import pandas as pd

penguins = pd.read_csv("penguins.csv")
incomplete = penguins.isna().any(axis=1).sum()
print(f"{len(penguins)} penguins, {incomplete} with something missing")
penguins = penguins.dropna()
penguins[["species", "island", "sex", "body_mass_g"]].sample(4, random_state=1)

# %% Compare the species
measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
means = penguins.groupby("species")[measures].mean().round(1)
means.insert(0, "count", penguins["species"].value_counts())
means.to_csv("means.csv")
means.T

# %% Bill length and depth
def correlation(birds):
    return birds["bill_length_mm"].corr(birds["bill_depth_mm"])

overall = correlation(penguins)
within = {name: correlation(birds) for name, birds in penguins.groupby("species")}
print(f"all together  {overall:+.2f}: longer bills seem to be shallower …")
for name, value in within.items():
    print(f"{name:<12}  {value:+.2f}")
print("… yet within each species they are deeper: Simpson's paradox.")

# %% Draw it
import matplotlib.pyplot as plt
import numpy as np

def fit(axes, birds, **style):
    x = birds["bill_length_mm"]
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, np.polyval(np.polyfit(x, birds["bill_depth_mm"], 1), ends), **style)

figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
for colour, marker, (name, birds) in zip(["#d95f02", "#7570b3", "#1b9e77"], "o^s", penguins.groupby("species")):
    axes.scatter(birds["bill_length_mm"], birds["bill_depth_mm"], s=28, color=colour, marker=marker,
                 alpha=0.65, linewidths=0, label=f"{name} (r = {within[name]:+.2f})")
    fit(axes, birds, color=colour, linewidth=2.5)
fit(axes, penguins, color="0.25", linewidth=2, linestyle="--", label=f"all together (r = {overall:+.2f})")
axes.set(xlabel="bill length (mm)", ylabel="bill depth (mm)")
axes.set_title("Longer bills are deeper in every species, and shallower overall", loc="left", weight="bold")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left")
figure.savefig("penguins.png", dpi=150)

# %% Tell the species apart
values = penguins[measures].to_numpy()
values = (values - values.mean(axis=0)) / values.std(axis=0)
species = penguins["species"].to_numpy()

distances = ((values[:, None] - values[None]) ** 2).sum(axis=2)
np.fill_diagonal(distances, np.inf)  # a penguin may not vouch for itself
nearest = species[distances.argmin(axis=1)]
print(pd.crosstab(species, nearest, rownames=["is"], colnames=["its nearest neighbour is"]))
{"right": int((nearest == species).sum()), "of": len(species)}
