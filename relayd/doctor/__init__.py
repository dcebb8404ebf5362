"""`relayd doctor URL`: looks at a deployment from outside, and says what to change where."""
