// Rules for web/; run by `make lint` (tools/lint_web.py) where Node.js is found.

import js from "@eslint/js";
import globals from "globals";

const AS_TEXT = "texts of prompts and servers are set as text, never as HTML";
const property = (name) => ({ property: name, message: AS_TEXT });
const folders = (...names) => ["error", { patterns: names.map((name) => ({ group: [`**/${name}/*`] })) }];

export default [
  js.configs.recommended,
  {
    files: ["web/**/*.js"],
    languageOptions: { ecmaVersion: 2023, sourceType: "module", globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      complexity: ["error", 14],
      "consistent-return": "error",
      "default-param-last": "error",
      eqeqeq: "error",
      "max-depth": ["error", 3],
      "max-len": ["error", { code: 120, ignorePattern: "^ {4}\\w+: \".*\",$" }],
      "max-lines": ["error", 300],
      "max-lines-per-function": ["error", 80],
      "max-params": ["error", 5],
      "no-await-in-loop": "off",
      "no-console": "error",
      "no-else-return": "error",
      "no-eval": "error",
      "no-implicit-coercion": ["error", { boolean: false, number: false }],
      "no-implied-eval": "error",
      "no-lonely-if": "error",
      "no-new-func": "error",
      "no-restricted-properties": ["error", ...["innerHTML", "outerHTML", "insertAdjacentHTML", "srcdoc"].map(property)],
      "no-script-url": "error",
      "no-shadow": "error",
      "no-unused-expressions": "error",
      "no-use-before-define": ["error", { functions: false, classes: false }],
      "no-useless-return": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
      radix: "error",
    },
  },
  // Drawings know neither the panel nor pages, and these know nothing of each other.
  { files: ["web/draw/*.js"], rules: { "no-restricted-imports": folders("panel", "pages") } },
  { files: ["web/panel/*.js"], rules: { "no-restricted-imports": folders("pages") } },
  { files: ["web/pages/*.js"], rules: { "no-restricted-imports": folders("panel") } },
];
