"""The pages as plain files, which open from a disk or any web host: the same views and templates, with relative links."""
