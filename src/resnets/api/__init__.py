"""What the package does, as plain functions: the commands have the same names and options.

They are there as `resnets.train`, `resnets.evaluate` and so on. An argument that a function does
not have is refused with the nearest name. A wrong name or path is answered before torch is imported
and before data is read; therefore the imports inside the functions.
"""
