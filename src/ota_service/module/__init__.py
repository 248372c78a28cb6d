# SPDX-License-Identifier: GPL-3.0-or-later
"""What Viam sees: models, configuration and verbs."""
