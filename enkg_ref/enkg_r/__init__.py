"""EnKG-R, this project's own extension, and the Metropolis tail that any method can end with. See README.md."""
