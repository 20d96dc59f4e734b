"""A scalar autograd engine, a tensor one beside it, and neural nets on both."""
