// SPDX-License-Identifier: Apache-2.0
#include "rseq/testing/probe.h"

int main(int argc, char** argv) { return ProbeMain(argc, argv); }
