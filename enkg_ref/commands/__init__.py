"""What ``enkg solve``, ``compare``, ``prior``, ``verify`` and ``list`` do, as functions of a frozen request."""
