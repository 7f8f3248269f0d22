import { selectBackend } from "../src/core/backend.ts";
import { loadClip, embedImages } from "../src/evaluation/clip.ts";
import { squareAround, windows } from "../src/evaluation/crops.ts";
import { crop } from "../src/evaluation/preprocess.ts";
import { gallery, retrieve } from "../src/evaluation/retrieval.ts";
import { imageAlignment } from "../src/evaluation/clip_score.ts";
import { IDENTITIES } from "../src/micro/world.ts";
import { loadConceptArt, conceptImages, otherDesigns } from "../src/micro/concepts.ts";
import { referenceImages, pixelsOf } from "../src/experiments/workshop.ts";
await selectBackend("wasm");
const art = await loadConceptArt();
const clip = await loadClip("/tmp/micro/clip_b");
const whole: [string, Float32Array[]][] = [], masked: [string, Float32Array[]][] = [];
for (const {name} of IDENTITIES) for (const d of [undefined, ...otherDesigns(name, art)]) {
  const im = referenceImages(art, name, d);
  const px = im.map(i=>pixelsOf(i.image,64));
  whole.push([d?`${name} ${d}`:name, await embedImages(clip, px)]);
  masked.push([d?`${name} ${d}`:name, await embedImages(clip, px.map((p,i)=>crop(p,squareAround(im[i].mask,64))))]);
}
const gw=gallery(whole), gm=gallery(masked);
console.log("gallery", gw.length);
let rw=0,rm=0,rwm=0,n=0, same=0, other=0, k=0, ms=0, mo=0;
for (const {name} of IDENTITIES) {
  const im = conceptImages(name,"train",art);
  const px = im.map(i=>pixelsOf(i.image,64));
  const ew = await embedImages(clip, px);
  for (let i=0;i<4;i++){
    const views = await embedImages(clip, windows(64,64).map(b=>crop(px[i],b)));
    const cut = await embedImages(clip, [crop(px[i],squareAround(im[i].mask,64))]);
    if (retrieve([ew[i]],gw).label===name) rw++;
    if (retrieve(views,gm).label===name) rm++;
    if (retrieve(cut,gm).label===name) rwm++;
    n++;
    const own = whole.find(w=>w[0]===name)![1], ownm = masked.find(w=>w[0]===name)![1];
    same+=imageAlignment(ew[i],own); ms+=Math.max(...views.map(v=>imageAlignment(v,ownm)));
    const o = IDENTITIES[(IDENTITIES.findIndex(x=>x.name===name)+1)%16].name;
    other+=imageAlignment(ew[i],whole.find(w=>w[0]===o)![1]); mo+=Math.max(...views.map(v=>imageAlignment(v,masked.find(w=>w[0]===o)![1])));
  }
}
console.log({whole: rw/n, windows: rm/n, cut: rwm/n, same: same/n, other: other/n, maskedSame: ms/n, maskedOther: mo/n, windows_n: windows(64,64).length});
