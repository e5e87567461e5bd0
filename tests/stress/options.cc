// SPDX-License-Identifier: Apache-2.0
#include "tests/stress/options.h"

namespace stress {

Options options;

}  // namespace stress
