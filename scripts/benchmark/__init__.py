"""The benchmark behind `scripts/bench`: relayd and its peers on one upstream and one load."""
