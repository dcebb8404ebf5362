"""relayd lends one provider key, safely and visibly, to the people and pages its owner trusts."""

__version__ = "0.1.0"
