"""What a metric is, whatever its value: how its name goes on, its unit, which way is more robust, what it means."""

QUARTILES = ("lower_quartile", "median", "upper_quartile")
ANY_NUMBER = r"\d[\d.e+-]*"  # in the name of a metric that is known only once the model or the data are open
