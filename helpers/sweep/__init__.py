"""Every message there is, and made-up sequences of ioctls: the engines and their options."""
