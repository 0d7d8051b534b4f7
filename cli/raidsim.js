#!/usr/bin/env node
// The command as it is installed. A file of its own because it has to be executable, which compiled files are not.
import '../dist/cli/main.js';
