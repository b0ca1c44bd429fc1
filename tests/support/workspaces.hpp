#pragma once

namespace support {

/// Checks of each compiled layer that a workspace for more tokens is never smaller, so that it serves fewer.
void check_workspaces();

}  // namespace support
