#pragma once

/// The version of the library: the only place that has it. CMake reads these lines.
#define SWITCHYARD_VERSION_MAJOR 0
#define SWITCHYARD_VERSION_MINOR 2
#define SWITCHYARD_VERSION_PATCH 0
