"use strict";
Theme.follow(document.getElementById("theme"), () => {});
