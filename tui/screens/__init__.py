"""What fills the window: the five screens, and the dialogs over them."""
